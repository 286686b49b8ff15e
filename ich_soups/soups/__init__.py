"Checkpoints, averaging, scoring, recipes: from many files to one model"
