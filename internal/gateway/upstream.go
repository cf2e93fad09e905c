// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/upstream"
)

// upstreamWay is the way upstream, for both protocols. It keeps apart what different clients send:
// over connections of its own by [upstream.Pool]'s rules, and over a foreign RoundTripper by asking
// for a new connection after each content.
type upstreamWay struct {
	base    *url.URL
	key     httpx.Secret      // may be nil
	pool    *upstream.Pool    // nil over a foreign RoundTripper
	foreign http.RoundTripper // nil over a pool
}

// readPaths are where an upstream reads all content before it answers 2xx. Elsewhere it may leave
// content unread.
var readPaths = []string{"/chat/completions", "/completions", "/embeddings", "/responses"}

func newUpstreamWay(c *Config, base *url.URL) (*upstreamWay, error) {
	rules := *base
	if c.InsecureUpstreamHTTP {
		rules.Scheme = "https" // the rules for http do not apply
	}
	rt, _, err := httpx.NewTransport(c.UpstreamTransport, &rules)
	if err != nil {
		return nil, err
	}
	w := &upstreamWay{base: base, key: c.UpstreamKey}
	settings, ok := rt.(*http.Transport)
	if !ok {
		w.foreign = rt
		return w, nil
	}
	var read []string
	for _, path := range readPaths {
		read = append(read, base.EscapedPath()+path)
	}
	w.pool = upstream.New(settings, func(req *http.Request) bool {
		return req.Method == http.MethodPost && slices.Contains(read, req.URL.EscapedPath())
	})
	return w, nil
}

// parseUpstream checks Config.Upstream. Its errors repeat nothing of it except an ending.
func parseUpstream(c *Config) (*url.URL, error) {
	if c.Upstream == "" {
		return nil, errors.New("required: the base URL of an OpenAI-compatible server, with /v1")
	}
	base, err := httpx.ParseBaseURL(c.Upstream, true)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(base.EscapedPath(), "/chat/completions") {
		return nil, errors.New("it has to end before \"/chat/completions\", with /v1 mostly: the " +
			"gateway adds the paths itself")
	}
	if base.Scheme != "http" || c.InsecureUpstreamHTTP {
		return base, nil
	}
	host := base.Hostname()
	_, err = netip.ParseAddr(host)
	switch {
	case err == nil && !httpx.IsLoopbackLiteral(host):
		return nil, fmt.Errorf("%w; use https, or set InsecureUpstreamHTTP if everybody on that "+
			"network may read prompts", httpx.ErrNotLoopback)
	case err != nil && !strings.EqualFold(host, "localhost"):
		c.Logger.Warn("Upstream is http to a name: requests fail where it is not loopback, unless "+
			"InsecureUpstreamHTTP is set", "host", host)
	}
	return base, nil
}

// transport is the way for what belongs to an account; "" is that of no account.
func (w *upstreamWay) transport(account string) http.RoundTripper {
	if w.pool == nil {
		return w.foreign
	}
	return w.pool.For(account)
}

func (w *upstreamWay) close() {
	if w.pool != nil {
		w.pool.Close()
	}
}

// upstreamCall is what an upstream is asked.
type upstreamCall struct {
	method      string
	path, query string // escaped; path is below the upstream's base URL
	header      http.Header
	content     *httpx.Sent
}

// request is a call as net/http has it, with the gateway's own headers in place of the client's.
func (w *upstreamWay) request(ctx context.Context, c *upstreamCall) (*http.Request, *refusal) {
	u := *w.base // never of a text: nothing that is asked for may change its host
	u.RawPath, u.RawQuery = u.EscapedPath()+c.path, c.query
	var err error
	if u.Path, err = url.PathUnescape(u.RawPath); err != nil {
		return nil, upstreamFailed(errors.New("not a URL")) // the error quotes it
	}
	req, err := http.NewRequestWithContext(ctx, c.method, "", nil)
	if err != nil {
		return nil, upstreamFailed(errors.New("not a method"))
	}
	req.URL, req.Host, req.Header = &u, u.Host, c.header
	req.Header.Set("User-Agent", httpx.UserAgent)
	req.Header.Set("Accept-Encoding", "identity") // what is compressed comes in lumps
	if w.key != nil {
		if err := httpx.SetBearer(req.Header, w.key); err != nil {
			return nil, upstreamFailed(err)
		}
	}
	if c.content.Len() > 0 { // last: whoever gets no request closes no body
		c.content.Attach(req)
		req.Close = w.pool == nil
	}
	return req, nil
}

// ask sends a request on its way for an account, and returns when the header of the answer has
// come. The caller closes its body.
func (w *upstreamWay) ask(req *http.Request, account string) (*http.Response, *refusal) {
	resp, err := httpx.RoundTrip(w.transport(account), req)
	if err != nil {
		ctx := req.Context()
		return nil, upstreamFailure(ctx, httpx.ExchangeError(ctx, theUpstream, err, false))
	}
	return resp, nil
}

// theUpstream names it in errors: what a client asks of it is sealed.
const theUpstream = "the upstream"

func upstreamFailure(ctx context.Context, err error) *refusal {
	p := upstreamFailed(err)
	switch {
	case errors.Is(err, fault.ErrInsecureURL):
		p.cause = fmt.Errorf("%w; see InsecureUpstreamHTTP", err)
	case errors.Is(err, context.DeadlineExceeded):
		p.status, p.detail = http.StatusGatewayTimeout, detailUpstreamLate
	case errors.Is(err, fault.ErrTooLarge):
		p.detail = "the upstream's answer is too large"
	case ctx.Err() != nil:
		p.status, p.detail = http.StatusServiceUnavailable, "the request was ended"
	}
	return p
}

// upstreamRefusal keeps the kind of an upstream's error status and none of its words, which may
// quote the prompt. It is for protocol v1, which does not seal errors. Clients repeat a 502, so
// failures that another attempt would meet again have another status.
func upstreamRefusal(a *httpx.Answer) *refusal {
	p := upstreamFailed(errStatus(a.Status))
	if keyRefused(a.Status) {
		p.status, p.detail = http.StatusFailedDependency, detailKeyRefused
		return p
	}
	if detail := upstreamDetails[a.Status]; detail != "" {
		p.status, p.detail = a.Status, detail
	}
	switch a.Status {
	case http.StatusConflict: // the gateway's own means a replay
		p.status = http.StatusBadRequest
	case http.StatusRequestTimeout:
		p.status = http.StatusGatewayTimeout
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		p.retryAfter = httpx.RetryAfter(a.Header.Get("Retry-After"), time.Now())
	}
	return p
}

// upstreamDetails say what a status of the upstream's means, and where to look. Never changed.
var upstreamDetails = map[int]string{
	http.StatusBadRequest:      "the upstream refused the request as invalid",
	http.StatusPaymentRequired: "the upstream answered 402: it wants to be paid",
	http.StatusNotFound: "the upstream answered 404: unknown model, or Upstream does not end in " +
		"/v1",
	http.StatusMethodNotAllowed: "the upstream answered 405: Upstream is no base URL that " +
		"ends in " +
		"/v1",
	http.StatusRequestTimeout:        detailUpstreamLate,
	http.StatusConflict:              "the upstream answered 409: it refused the request",
	http.StatusGone:                  "the upstream answered 410: the model is gone",
	http.StatusRequestEntityTooLarge: "the request is too large for the upstream",
	http.StatusUnsupportedMediaType: "the upstream answered 415: it does not take JSON at this " +
		"path",
	http.StatusUnprocessableEntity: "the upstream refused the request as invalid",
	http.StatusTooManyRequests:     "the upstream is rate limited",
	http.StatusServiceUnavailable:  "the upstream is unavailable",
	http.StatusGatewayTimeout:      detailUpstreamLate,
}

const (
	detailUpstreamLate = "the upstream did not answer in time"
	detailKeyRefused   = "the gateway's key is refused upstream"
)

// keyRefused tells the statuses that speak of the gateway's own key, or of a proxy's.
func keyRefused(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden ||
		status == http.StatusProxyAuthRequired
}

func errStatus(status int) error { return fmt.Errorf("upstream status %d", status) }

// sealable says what is wrong with an answer that Oblivious HTTP is to pass on as it comes: its
// status or its form is not for the client, or its end cannot be told from a cut.
func sealable(resp *http.Response, limit int64) *refusal {
	switch s := resp.StatusCode; {
	case keyRefused(s):
		p := upstreamFailed(errStatus(s))
		p.detail = detailKeyRefused
		return p
	case s < 200, s >= 300 && s < 400, s > 599:
		return upstreamFailed(errStatus(s))
	}
	if _, _, err := httpx.Decoded(resp.Header, nil, limit); err != nil {
		return upstreamFailed(err)
	}
	if resp.ContentLength > limit {
		return refuse(http.StatusBadGateway, "the upstream's answer is too large")
	}
	return nil
}
