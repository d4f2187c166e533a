"""Colours of the plots; people with any colour vision can distinguish them (Okabe and Ito)."""

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
