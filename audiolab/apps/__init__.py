"The program `audiolab`."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "program": ["COMMANDS", "Command", "EXAMPLES", "GROUPS", "HistoryConfig", "InspectConfig",
        "UsageError", "VerifyConfig", "history_command", "inspect_command", "main",
        "verify_command"],
})
