"""Networks from elsewhere: their convention, a drift that follows it, and their weights from files."""
