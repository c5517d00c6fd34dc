"""What is right and wrong with a cluster's file, before anything is rented, applied or queued."""
