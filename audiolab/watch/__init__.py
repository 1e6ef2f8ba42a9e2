"Watching a run: curves, terminal, TensorBoard, the notebook monitor, pages of pictures and players."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "curves": ["Curve", "MEASURED_BY_LOOP", "RunCurves", "is_number", "loss_names", "smooth",
        "task_names"],
    "history_picture": ["CurvePanel", "HistoryPlot", "SIDES", "axis_limits", "draw_shares",
        "grouped", "label_of", "plot_history", "points_of", "round_ticks", "scale_axis",
        "short_number", "side_names"],
    "monitor": ["MAX_SOUND", "Monitor", "OVER", "Painter", "RunFollower", "cell_number",
        "connect_buttons", "player_html", "trouble_html", "troubles", "watch"],
    "panel": ["ButtonWidgets", "GREY", "MonitorPanel", "RED", "SampleBrowser", "SampleShelf",
        "SampleWidgets", "WordWidgets", "png_bytes", "set_changed", "wav_bytes",
        "widget_library"],
    "report_page": ["PAGE", "PAGE_STYLE", "Page", "fact_text", "figure_png", "file_part",
        "html_facts", "html_picture", "html_players", "html_table", "playable", "replace_file",
        "table_cells"],
    "run_status": ["RunLength", "RunStatus", "epoch_summary", "find_setting", "name_as_title",
        "of_how_many", "short_bytes", "short_duration", "short_value"],
    "sample_picture": ["decoded_picture", "plot_sample", "sample_decibels", "sample_strip",
        "sound_decibels"],
    "tensorboard": ["TensorBoardLogger", "flat_settings", "settings_table",
        "summary_writer_class", "usual_tags"],
    "terminal": ["Screen", "TerminalProgress", "bar_texts", "is_interactive", "validation_line"],
})
