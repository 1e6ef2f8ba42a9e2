"Watching a run: curves, terminal, TensorBoard, the notebook monitor, pages of pictures and players."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "curves": ["Curve", "HistoryPlot", "MEASURED_BY_LOOP", "RunCurves", "is_number",
        "loss_names", "plot_history", "plot_sample", "sample_strip", "task_names"],
    "monitor": ["Monitor", "watch"],
    "report_page": ["Page", "replace_file"],
    "terminal": ["RunStatus", "TensorBoardLogger", "TerminalProgress", "epoch_summary"],
})
