"""What does the error page of development show of the settings? No secret, also not in an address.

Its one rule: Django hides settings with names such as KEY and PASSWORD; `mask` hides secrets in all other texts.
Limits: DEBUG only. The page shows the variables of the code that failed as they are.
"""

from typing import Any

from django.views.debug import SafeExceptionReporterFilter

from jobs.secrets import mask


class Masked(SafeExceptionReporterFilter):
    def cleanse_setting(self, key: Any, value: Any) -> Any:
        cleansed = super().cleanse_setting(key, value)
        return mask(cleansed) if type(cleansed) is str else cleansed  # no lazy text
