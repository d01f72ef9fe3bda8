"""Low precision: number formats, weights that stay packed in memory, published layouts, training in four bits."""
