"""Songs with stems on disk, and how training reads them."""
