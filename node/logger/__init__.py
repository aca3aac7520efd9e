"""The process that keeps a server's log and gives it to whoever asks; on server 0, everybody's as one."""
