// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// logCall writes the one line that each call has at level INFO, when it has ended. status is that
// of an answer that opened.
func (c *SecureCompletionClient) logCall(ctx context.Context, in *plainRequest, o *callOptions,
	start time.Time, status int, size int64, err error) {
	attrs := []slog.Attr{
		slog.String("payload_id", o.sealed), // of the last attempt
		slog.String("protocol", string(c.cfg.Protocol)), slog.Int("attempts", o.attempts),
		slog.Int("bytes_out", len(in.content)), slog.Int64("bytes_in", size),
		slog.String("tier", string(o.tier)), slog.Duration("duration", time.Since(start)),
	}
	if answer, ok := errors.AsType[*APIError](err); ok {
		status = answer.StatusCode
	} else if err != nil && size == 0 {
		status = 0
	}
	if status != 0 {
		attrs = append(attrs, slog.Int("status", status))
	}
	switch {
	case errors.Is(err, ErrAudit): // its cause has a line of its own, or went to the caller
		attrs = append(attrs, slog.String("error", ErrAudit.Error()))
	case err != nil:
		attrs = append(attrs, slog.String("error", logText(err)))
	}
	c.log.LogAttrs(ctx, slog.LevelInfo, "request", attrs...)
}
