"Speech from text: T3, taught a new language."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "language_tables": ["LanguageTable", "TTSError", "TextRule"],
})
