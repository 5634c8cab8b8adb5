"""The data path of training: block-shuffled, read ahead, resumable, with a held-out split by document."""
