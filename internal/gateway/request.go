// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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
// what is refused after that can only be cut. The handler's goroutine alone uses the fields, except
// returned, which the deadlines' lock guards: the server's end sets deadlines from another one.
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

	share *limit.Lease // what its body has of the bytes on the way; nil before, and in a place
	seat  *limit.Lease // what it has of its account's places; nil before it has a place

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
	return h.writeWithin(h.s.cfg.BodyTimeout, status, body)
}

// writeWithin is write with a time limit: a client that does not read must not hold a place.
func (h *request) writeWithin(limit time.Duration, status int, body []byte) error {
	h.status, h.bytesOut = status, len(body)
	h.header("Content-Length", strconv.Itoa(len(body)))
	h.within(limit, writing)
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
			panic(http.ErrAbortHandler) // cut the answer, so that no client takes it for whole
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
	switch {
	case h.outcome() >= 500:
		level = slog.LevelWarn
	case h.outcome() < 400 && (h.r.Method == http.MethodGet || h.r.Method == http.MethodHead):
		level = slog.LevelDebug // a key was fetched
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

// address is whom the request counts for.
func (h *request) address() string { return limit.Address(h.r, h.s.cfg.AddressHeader) }

// admitOuter looks at what is not sealed, and holds in both protocols. most is what a sealed
// request may have.
func (h *request) admitOuter(most int64) *refusal {
	switch {
	case !plainContentType(h.r.Header):
		return refuse(http.StatusBadRequest, "want one content-type field, in ASCII")
	case hasEncoding(h.r.Header):
		return refuse(http.StatusUnsupportedMediaType, "a sealed request has no content encoding")
	case h.r.ContentLength > most:
		return tooLarge()
	}
	return nil
}

// takePlace takes a place among the requests that are worked on, and gives up what the body has
// among those on the way. It waits for a place for a while, as long as the client does and the
// server is open. Of its account's places it has to have one first: an account that has all of its
// own does not wait among the others. A request that has a place gives it back.
func (h *request) takePlace() *refusal {
	seat, wait := h.s.limits.accounts.Take(accountKey(h.account), 1)
	if wait > 0 {
		return accountBusy()
	}
	p := h.waitForPlace()
	if p != nil {
		seat.Return()
		return p
	}
	h.seat = seat
	h.share.Return()
	return nil
}

// accountKey is an account's key in a limiter, which keeps the beginning of a key. "" stays what it
// is: no account.
func accountKey(account string) string {
	if account == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(account))
	return string(sum[:])
}

func (h *request) waitForPlace() *refusal {
	select {
	case h.s.places <- struct{}{}:
		return nil
	default:
	}
	wait := time.NewTimer(placeWait)
	defer wait.Stop()
	select {
	case h.s.places <- struct{}{}: // the first that waits gets the first that is free
		return nil
	case <-wait.C:
		return tooManyAtOnce()
	case <-h.s.life.Done():
		p := closing()
		p.unclaimed = true
		return p
	case <-h.r.Context().Done():
		p := refuse(statusClientGone, "the client did not wait for a place")
		p.cause, p.unclaimed = h.r.Context().Err(), true
		return p
	}
}

func (h *request) givePlace() {
	<-h.s.places
	h.seat.Return()
}

// whileServed is ctx for the work on a request: until Timeout is over, or the server is closed.
func (h *request) whileServed() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(h.r.Context(), h.s.cfg.Timeout)
	stop := context.AfterFunc(h.s.life, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// drain takes in, and forgets, the body of a request that is refused without it. Many clients look
// for an answer only when they have sent everything; on a connection that is closed before, they
// find none, and repeat the request.
func (h *request) drain() {
	h.share.Return() // nothing of it is kept
	// The bound holds for what net/http reads by itself, too.
	h.within(min(h.s.cfg.BodyTimeout, 10*time.Second), reading)
	if h.r.Header.Get("Expect") != "" { // these wait for a word before they send
		return
	}
	_, _ = io.CopyN(io.Discard, h.r.Body, 16<<20) // the largest request of v1, sealed, has 14 MiB
}

// authenticate has Config.Authenticate judge r, which is the request or was made of what opened.
func (h *request) authenticate(r *http.Request) *refusal {
	judge := h.s.cfg.Authenticate
	if judge == nil {
		return nil
	}
	account, retryAfter, err := judge(r)
	if err != nil {
		return authRefusal(err, retryAfter)
	}
	h.account = account
	return nil
}

// readTier reads the tier that a header asks for, and refuses one that is not provided here.
func (h *request) readTier(header http.Header) *refusal {
	tier := hybrid.Tier(header.Get(hybrid.HeaderTier))
	if len(header.Values(hybrid.HeaderTier)) > 1 || tier.Rank() < 0 {
		return refuse(http.StatusBadRequest, "X-Security-Tier is not standard, high or maximum")
	}
	h.tier = tier
	return h.checkTier()
}

func (h *request) checkTier() *refusal {
	if h.tier.Rank() > h.s.cfg.Tier.Rank() {
		return refuse(http.StatusForbidden,
			"this security tier is not available here").as(TierRefused)
	}
	return nil
}

func (h *request) tell(ctx context.Context, e Event) error {
	e.PayloadID, e.Account = h.payloadID, h.accountName()
	return h.s.tell(ctx, e)
}

// tellOpened tells of a request that is about to go upstream.
func (h *request) tellOpened(ctx context.Context, size int) *refusal {
	return unaudited(h.tell(ctx, Event{Type: RequestOpened, Tier: h.tier, Bytes: int64(size)}))
}

func (h *request) tellSealed(ctx context.Context, size int) *refusal {
	return unaudited(h.tell(ctx, Event{
		Type: ResponseSealed, Bytes: int64(size), Duration: time.Since(h.start),
	}))
}

// tellRefused tells of a refusal that is an event. An error of the Auditor's can only be logged:
// the request is refused.
func (h *request) tellRefused(p *refusal) {
	if p.event == "" {
		return
	}
	e := Event{Type: p.event, Status: p.status, Reason: p.detail}
	if p.event == TierRefused {
		e.Tier = h.tier
	}
	h.logAudit(h.tell(h.r.Context(), e))
}

func (h *request) logAudit(err error) {
	if err != nil {
		h.s.cfg.Logger.Error("audit failed", "payload_id", h.payloadID, "cause", fault.Reason(err))
	}
}

// timeUpstream measures the time upstream for the log, until its result is called.
func (h *request) timeUpstream() func() {
	start := time.Now()
	return func() { h.upstream = time.Since(start) }
}

// askUpstream sends req upstream, and notes for the log what was asked, and the status that came.
// The caller closes the answer's body.
func (h *request) askUpstream(req *http.Request) (*http.Response, *refusal) {
	h.upstreamPath = req.URL.EscapedPath()
	resp, p := h.s.upstream.ask(req, h.account)
	if p == nil {
		h.upstreamStatus = resp.StatusCode
	}
	return resp, p
}
