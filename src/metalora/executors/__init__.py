"""What executes many pieces of work: this process, processes of this machine, Ray or Slurm."""
