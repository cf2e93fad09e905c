// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/limit"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// request is one request on its way through, and what the log will say of it.
//
// Invariant: status is 0 until the header of the answer is written, and the header is written once;
// what is refused after that can only be cut. Everything but the deadlines belongs to the handler's
// goroutine.
type request struct {
	s     *Server
	w     http.ResponseWriter
	r     *http.Request
	start time.Time

	status    int // of the outer answer
	inner     int // the status that was sealed, in Oblivious HTTP
	payloadID string
	account   string // whose request it is, as Authenticate has it
	tier      hybrid.Tier
	bytesIn   int
	bytesOut  int
	upstream  time.Duration
	// the path that was asked for upstream, and the status that came; "" and 0 before
	upstreamPath   string
	upstreamStatus int
	problem        *refusal
	cut            bool // an answer began that the client did not get to its end
	forwarded      bool // something of the request may have reached the upstream

	share *limit.Lease // what its body has of the bytes on the way; nil before, and in a place

	deadlines sync.Mutex
	returned  bool // the handler has returned: w is no longer to be touched
}

// release ends what the request has of its server and its connection.
func (h *request) release() {
	h.share.Return()
	h.deadlines.Lock()
	defer h.deadlines.Unlock()
	h.returned = true
}

// within bounds the time for what is still read of the request, or written of the answer. Where a
// server cannot, its own timeouts hold. The bound on reading stays in force when a request is
// refused: net/http reads on before it answers.
func (h *request) within(d time.Duration, what direction) {
	h.deadlines.Lock()
	defer h.deadlines.Unlock()
	if h.returned {
		return
	}
	if d != 0 && h.s.life.Err() != nil { // once the server is closing, nothing takes the bound back
		return
	}
	h.setDeadlines(d, what)
}

func (h *request) setDeadlines(d time.Duration, what direction) {
	at := time.Now().Add(d)
	if d == unbounded {
		at = time.Time{}
	}
	control := http.NewResponseController(h.w)
	if what&reading != 0 {
		_ = control.SetReadDeadline(at)
	}
	if what&writing != 0 {
		_ = control.SetWriteDeadline(at)
	}
}

type direction int

const (
	reading direction = 1 << iota
	writing
	unbounded time.Duration = -1
)

func (h *request) header(name, value string) { h.w.Header().Set(name, value) }

func (h *request) only(serve func(), methods ...string) {
	for _, m := range methods {
		if h.r.Method == m {
			serve()
			return
		}
	}
	h.header("Allow", strings.Join(methods, ", "))
	h.refuse(refuse(http.StatusMethodNotAllowed, "method not allowed"))
}

func (h *request) health() {
	h.header("Content-Type", "application/json")
	_ = h.write(http.StatusOK, []byte(`{"status":"ok"}`+"\n"))
}

// write sends a whole answer, and reports whether the connection took it.
func (h *request) write(status int, body []byte) error {
	h.status, h.bytesOut = status, len(body)
	h.header("Content-Length", strconv.Itoa(len(body)))
	h.within(h.s.cfg.BodyTimeout, writing) // a client that does not read must not hold a place
	h.w.WriteHeader(status)
	if h.r.Method == http.MethodHead {
		return nil
	}
	_, err := h.w.Write(body)
	if err == nil {
		err = h.flush()
	}
	if err != nil {
		h.cut = status < 300
		return err
	}
	h.within(unbounded, writing) // the connection may serve other requests
	return nil
}

// flush has the connection send what was written.
func (h *request) flush() error {
	err := http.NewResponseController(h.w).Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// refuse answers in the clear, as protocol v1 has it.
func (h *request) refuse(p *refusal) {
	h.problem = p
	h.tellRefused(p)
	_ = h.write(p.status, p.render(h.w.Header())) // the client may be gone
}

// refuseAtTheDoor answers a request that comes when the server is closed.
func (h *request) refuseAtTheDoor() {
	p := closing()
	body := p.render(h.w.Header())
	h.setDeadlines(h.s.cfg.BodyTimeout, reading|writing)
	h.w.WriteHeader(p.status)
	_, _ = h.w.Write(body)
}

// finish survives a panic, counts the request and writes the log line.
func (h *request) finish() {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			panic(p)
		}
		h.logPanic(p)
		if h.status != 0 {
			panic(http.ErrAbortHandler) // cut the answer, so that nobody takes it for whole
		}
		h.refuse(refuse(http.StatusInternalServerError, "internal error"))
	}
	switch {
	case h.r.URL.Path == hybrid.PathCompletion:
		h.s.counts.done(h.status, h.cut)
	case h.r.URL.Path == ohttp.Path && h.r.Method == http.MethodPost:
		h.s.counts.done(h.outcome(), h.cut)
	}
	if h.r.URL.Path != pathHealth || h.status != http.StatusOK {
		h.log()
	}
}

func (h *request) log() {
	level := slog.LevelInfo
	if h.outcome() >= 500 {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("payload_id", h.payloadID),
		slog.String("method", fault.Sanitise(h.r.Method, 16)),
		slog.Int("status", h.status),
		slog.Int("bytes_in", h.bytesIn),
		slog.Int("bytes_out", h.bytesOut),
		slog.String("tier", string(h.tier)),
		slog.Duration("duration", time.Since(h.start)),
		slog.Duration("upstream", h.upstream),
	}
	if h.upstreamPath != "" {
		attrs = append(attrs, slog.String("upstream_path", fault.Sanitise(h.upstreamPath, 256)))
	}
	if h.upstreamStatus != 0 {
		attrs = append(attrs, slog.Int("upstream_code", h.upstreamStatus))
	}
	if h.account != "" {
		attrs = append(attrs, slog.String("account", h.accountName()))
	}
	if h.inner != 0 {
		attrs = append(attrs, slog.String("protocol", "ohttp"), slog.Int("inner_status", h.inner))
	}
	if h.problem != nil {
		attrs = append(attrs, slog.String("problem", h.problem.detail))
		if h.problem.cause != nil {
			attrs = append(attrs, slog.String("cause", fault.Reason(h.problem.cause)))
		}
	}
	h.s.cfg.Logger.LogAttrs(h.r.Context(), level, "request", attrs...)
}

// accountName is the account as logs and events have it: Authenticate may have it from a client.
func (h *request) accountName() string { return fault.Sanitise(h.account, 128) }

// outcome is the status that tells how it went: of Oblivious HTTP the inner one, or that of what
// cut the answer.
func (h *request) outcome() int {
	switch {
	case h.inner != 0 && h.problem != nil:
		return h.problem.status
	case h.inner != 0:
		return h.inner
	}
	return h.status
}

// logPanic logs neither the panic's value nor arguments on the stack: they can hold content.
func (h *request) logPanic(p any) {
	kind := fmt.Sprintf("%T", p)
	h.s.cfg.Logger.Error("panic survived",
		"payload_id", h.payloadID, "type", kind, "at", callers())
	h.logAudit(h.tell(h.r.Context(), Event{Type: PanicSurvived, Reason: kind}))
}

// callers names the functions that led to a panic, without their arguments.
func callers() []string {
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(5, pcs)])
	var names []string
	for {
		f, more := frames.Next()
		names = append(names, f.Function+":"+strconv.Itoa(f.Line))
		if !more {
			return names
		}
	}
}
