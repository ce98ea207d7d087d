"""Detection on images and videos, and export."""
