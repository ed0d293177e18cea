import etd_ds  # noqa: F401  (before torch: it decides how OpenMP threads wait)
