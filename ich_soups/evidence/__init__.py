"Scores, comparisons, diagnostics, plots: arrays and tables in, arrays and tables out"
