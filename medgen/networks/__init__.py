"""Networks that MONAI lacks, in two and three dimensions; they know no loss and no training."""
