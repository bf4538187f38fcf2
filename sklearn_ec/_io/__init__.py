"""What outlives the process: cache, files, exports to other libraries."""
