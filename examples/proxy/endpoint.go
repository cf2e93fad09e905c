// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// endpoint is the handler of the proxy.
type endpoint struct {
	client  *sealedchat.SecureCompletionClient
	http    *http.Client // of client
	server  *program.Server
	target  string // the server's URL, without a slash at its end
	passKey bool
	models  []string // over v1
	maxBody int64
	// bodyTime is for a request's body to come. A limit for a whole request would cut streams.
	bodyTime time.Duration
	guard    guard
	wiper    *wiper
	log      func(text string)
	started  time.Time
	key      atomic.Pointer[seenKey]
	counts   counts
}

// counts are sums since the start, except running.
type counts struct{ requests, refused, failed, running atomic.Int64 }

// ServeHTTP implements http.Handler.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setSafe(w.Header())
	if refused := e.guard.check(r); refused != nil {
		e.counts.refused.Add(1)
		leaveBody(w)
		refuse(w, refused)
		return
	}
	own := r.URL.Path == "/sealed" || r.URL.Path == "/" || r.URL.Path == "/favicon.ico" ||
		e.server.Protocol == sealedchat.ProtocolEnvelope && isModels(r)
	if own && r.ContentLength != 0 {
		leaveBody(w)
	}
	switch {
	case !own:
		e.carry(w, r)
	case r.URL.Path == "/sealed":
		e.serveStatus(w, r)
	case r.URL.Path == "/" || r.URL.Path == "/favicon.ico":
		refuse(w, &refusal{http.StatusNotFound, "not_found",
			"this is sealedchat's proxy: SDKs take the base URL http://" + r.Host +
				"/v1, and /sealed says how it is sealed"})
	default:
		e.serveModels(w, r)
	}
}

// leaveBody ends the connection after an answer for which nobody reads the request's body. net/http
// waits for the rest of it, so that the answer arrives: without a limit for as long as a client
// likes, be it one that has no token.
func leaveBody(w http.ResponseWriter) {
	w.Header().Set("Connection", "close")
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(leaveTime))
}

// setSafe keeps a browser from doing anything with an answer, whatever its content type.
func setSafe(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
}

// carry seals a request, sends it, and passes the answer on as it comes.
func (e *endpoint) carry(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength > e.maxBody {
		e.counts.refused.Add(1)
		leaveBody(w)
		refuse(w, &refusal{http.StatusRequestEntityTooLarge, "request_too_large",
			"a request of more than " + strconv.FormatInt(e.maxBody, 10) + " bytes; -max-body " +
				"allows more, if the server does"})
		return
	}
	e.counts.requests.Add(1)
	e.counts.running.Add(1)
	e.wiper.begin()
	defer e.wiper.end()
	defer e.counts.running.Add(-1)
	body := &timedBody{ReadCloser: r.Body, control: http.NewResponseController(w)}
	out, err := e.outgoing(r, body)
	if err != nil {
		e.counts.failed.Add(1)
		refuse(w, &refusal{http.StatusBadRequest, "invalid_request", "the URL cannot be carried"})
		return
	}
	resp, err := e.http.Do(out)
	if err != nil {
		if body.failed.Load() {
			err = errBody
		}
		e.fail(w, r, err)
		return
	}
	defer resp.Body.Close()
	copyHeader(w.Header(), resp)
	w.WriteHeader(resp.StatusCode)
	if err := pass(w, resp); err != nil {
		e.counts.failed.Add(1)
		if r.Context().Err() == nil {
			e.cut(w, resp, err)
		}
		panic(http.ErrAbortHandler) // the client must not take what came for all
	}
}

// outgoing is the request for the client. Of the header only what HTTPClient looks at goes along,
// and the client's API key only with -pass-key.
func (e *endpoint) outgoing(r *http.Request, timed *timedBody) (*http.Request, error) {
	target := e.target + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		target += "?" + r.URL.RawQuery
	}
	var body io.Reader
	if r.ContentLength != 0 {
		if err := timed.control.SetReadDeadline(time.Now().Add(e.bodyTime)); err != nil {
			return nil, err
		}
		body = timed
	}
	out, err := http.NewRequestWithContext(r.Context(), r.Method, target, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		out.ContentLength = r.ContentLength
	}
	for _, name := range []string{"Accept", "Content-Type", "OpenAI-Beta", "X-Security-Tier",
		"X-Stainless-Retry-Count"} {
		if v := r.Header.Get(name); v != "" {
			out.Header.Set(name, v)
		}
	}
	if key := bearer(r.Header); key != "" && e.passKey {
		out.Header.Set("Authorization", "Bearer "+key)
	}
	return out, nil
}

// timedBody takes the deadline for the body away once all of it is read: net/http watches the
// connection while the answer is made, and would end the request when the deadline comes. After a
// failure the deadline stays: net/http's Close reads what is left of a body, and would wait for it.
type timedBody struct {
	io.ReadCloser
	control *http.ResponseController
	once    sync.Once
	failed  atomic.Bool // Read did; Close may run at the same time
}

// errBody is the error of a request that did not arrive as a whole.
var errBody = errors.New("the request's body did not arrive")

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.done()
	} else if err != nil {
		b.failed.Store(true)
	}
	return n, err
}

func (b *timedBody) Close() error {
	err := b.ReadCloser.Close()
	if err == nil && !b.failed.Load() {
		b.done()
	}
	return err
}

func (b *timedBody) done() { b.once.Do(func() { _ = b.control.SetReadDeadline(time.Time{}) }) }

// copyHeader takes over what an answer says of itself, except what concerns a connection, and what
// could give a web page rights that the proxy does not give.
func copyHeader(to http.Header, resp *http.Response) {
	set := maps.Clone(to)
	for name, values := range resp.Header {
		switch name {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Trailer",
			"Upgrade", "Te", "Set-Cookie", "Content-Length", "Alt-Svc", "Refresh",
			"Service-Worker-Allowed", "Date", "Server", "Strict-Transport-Security":
			continue
		}
		if set[name] != nil || strings.HasPrefix(name, "Access-Control-") ||
			strings.HasPrefix(name, "Proxy-") {
			continue
		}
		to[name] = values
	}
	if resp.ContentLength >= 0 {
		to.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	}
}

const pieceSize = 16 << 10 // bytes of an answer that are passed on at once

// pass copies an answer's body to w, piece by piece as it comes.
func pass(w http.ResponseWriter, resp *http.Response) error {
	control := http.NewResponseController(w)
	piece := make([]byte, pieceSize)
	defer clear(piece)
	var until time.Time // for the client to take what comes
	for {
		n, err := resp.Body.Read(piece)
		if n > 0 {
			if now := time.Now(); until.Sub(now) < pieceTime/2 { // not at each piece: it costs
				until = now.Add(pieceTime)
				_ = control.SetWriteDeadline(until)
			}
			if _, err := w.Write(piece[:n]); err != nil {
				return err
			}
			if resp.ContentLength < 0 {
				if err := control.Flush(); err != nil {
					return err
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// cut tells the client of a stream why it ends, in the way that OpenAI's SDKs read. It comes
// behind a whole event: the pieces of a stream are whole events, unless one is larger than
// pieceSize. The line break ends what may be left of such a one.
func (e *endpoint) cut(w http.ResponseWriter, resp *http.Response, err error) {
	text, _ := e.server.Explain(context.Background(), err)
	e.log("an answer was cut: " + text)
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		_, _ = io.WriteString(w, "\n\ndata: "+errorText("answer_cut", http.StatusBadGateway,
			"the answer was cut: "+text)+"\n\n")
	}
	_ = http.NewResponseController(w).Flush()
}

// fail answers a request for which there is no answer.
func (e *endpoint) fail(w http.ResponseWriter, r *http.Request, err error) {
	e.counts.failed.Add(1)
	// a body that does not come ends the context as well, and its sender may still listen
	if r.Context().Err() != nil && !errors.Is(err, errBody) {
		panic(http.ErrAbortHandler)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // its text has the URL, with the query
	}
	text, _ := e.server.Explain(r.Context(), err)
	e.log(text)
	status, code := http.StatusBadGateway, "security_error"
	switch {
	case errors.Is(err, errBody):
		status, code = http.StatusRequestTimeout, "request_timeout"
	case errors.Is(err, context.DeadlineExceeded):
		status, code = http.StatusGatewayTimeout, "timeout"
	case errors.Is(err, sealedchat.ErrConnection):
		code = "connection_error"
	case errors.Is(err, sealedchat.ErrTruncated):
		code = "answer_cut"
	case errors.Is(err, sealedchat.ErrClosed):
		status, code = http.StatusServiceUnavailable, "closing"
	}
	w.Header().Set("X-Should-Retry", "false") // the client has done so, where that is safe
	refuse(w, &refusal{status, code, text})
}

// refuse writes an error in OpenAI's shape.
func refuse(w http.ResponseWriter, r *refusal) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, errorText(r.code, r.status, r.message)+"\n")
}

// errorText is OpenAI's error object.
func errorText(code string, status int, message string) string {
	kind := "invalid_request_error"
	switch {
	case status == http.StatusUnauthorized:
		kind = "authentication_error"
	case status == http.StatusForbidden:
		kind = "permission_error"
	case status >= 500:
		kind = "server_error"
	}
	text, _ := json.Marshal(map[string]any{"error": map[string]any{ // texts and nil: cannot fail
		"message": message, "type": kind, "param": nil, "code": code}})
	return string(text)
}
