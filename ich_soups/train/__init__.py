"Models, snapshots, training runs, runs on many machines"
