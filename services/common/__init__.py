"""What more than one service uses: errors, the server's life, settings, logs, metrics."""
