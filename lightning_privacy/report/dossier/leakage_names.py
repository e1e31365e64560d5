"""The numbers of attacks on shared updates, in words."""

__all__ = ["LEAKAGE_FAMILIES", "LEAKAGE_METRICS"]

LEAKAGE_METRICS = {
    "aligned_ssim": "SSIM after an affine fit",
    "aligned_psnr": "PSNR in dB after an affine fit",
    "aligned_mse": "MSE after an affine fit",
    "success": "records reconstructed (SSIM after an affine fit of .6 and more)",
    "retrieval_rank": "rank of the record among the client's own",
    "label_accuracy": "classes found",
    "matching_loss": "distance of the updates at the end (median)",
    "converged_share": "searches that ended by themselves",
}
LEAKAGE_FAMILIES = {
    "leakage": "records behind shared updates",
    "leakage_control": "controls of the attacks on shared updates",
    "leakage_reference": "guesses without any update",
}
