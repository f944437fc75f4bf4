"""Parts that several recipes share: options of the command line, the trainer, the folder of a run."""
