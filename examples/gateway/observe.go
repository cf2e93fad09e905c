// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// sample is what the metrics learn of one request: its times from the writer of the answer, the
// rest from the gateway's log line, whose handler is given the request's context. The goroutine of
// the request alone uses it.
type sample struct {
	protocol string
	start    time.Time
	last     time.Time // when the last piece of the answer went; zero: none did

	account string
	status  int // the sealed one, if there is one
	refusal string
}

type sampleKey struct{}

// sampleHandler hands the gateway's line on a request to its sample, and each line to the log.
type sampleHandler struct{ slog.Handler }

// Enabled implements slog.Handler: the lines on requests are at INFO and above.
func (h sampleHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.Handler.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (h sampleHandler) Handle(ctx context.Context, line slog.Record) error {
	if s, ok := ctx.Value(sampleKey{}).(*sample); ok && line.Message == "request" {
		line.Attrs(func(a slog.Attr) bool {
			s.read(a)
			return true
		})
	}
	if !h.Handler.Enabled(ctx, line.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, line)
}

// WithAttrs implements slog.Handler.
func (h sampleHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return sampleHandler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h sampleHandler) WithGroup(name string) slog.Handler {
	return sampleHandler{h.Handler.WithGroup(name)}
}

func (s *sample) read(a slog.Attr) {
	switch a.Key {
	case "account":
		s.account = a.Value.String()
	case "status":
		if s.status == 0 {
			s.status = int(a.Value.Int64())
		}
	case "inner_status":
		s.status = int(a.Value.Int64())
	case "problem": // one of the gateway's own words, of which there are a few dozen
		s.refusal = a.Value.String()
	}
}

// statusText is the status as a label.
func (s *sample) statusText() string {
	if s.status == 0 {
		return "none"
	}
	return strconv.Itoa(s.status)
}

// timedWriter measures when the pieces of an answer go.
type timedWriter struct {
	http.ResponseWriter
	s *sample
	m *metrics
}

// Write implements http.ResponseWriter.
func (w *timedWriter) Write(b []byte) (int, error) {
	now := time.Now()
	if w.s.last.IsZero() {
		w.m.firstByte.WithLabelValues(w.s.protocol).Observe(now.Sub(w.s.start).Seconds())
	} else {
		w.m.pieces.WithLabelValues(w.s.protocol).Observe(now.Sub(w.s.last).Seconds())
	}
	w.s.last = now
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController: deadlines and flushing are the server's.
func (w *timedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
