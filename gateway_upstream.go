// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/upstream"
)

// upstreamWay is the gateway's way upstream, for both protocols. It keeps apart what different clients send: over
// connections of its own by [upstream.Pool]'s rules, and over a foreign RoundTripper by asking for a new connection
// after each content.
type upstreamWay struct {
	base    *url.URL
	key     *Secret           // may be nil
	pool    *upstream.Pool    // nil over a foreign RoundTripper
	foreign http.RoundTripper // nil over a pool
}

// readPaths are where an upstream reads all content before it answers 2xx. Elsewhere it may leave content unread.
var readPaths = []string{"/chat/completions", "/completions", "/embeddings", "/responses"}

func newUpstreamWay(c *GatewayConfig, base *url.URL) (*upstreamWay, error) {
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

// transport is the way for what belongs to an account; "" is nobody's.
func (w *upstreamWay) transport(account string) http.RoundTripper {
	if w.pool == nil {
		return w.foreign
	}
	return w.pool.For(account)
}

// request makes a request with the gateway's own headers. path is escaped, below the upstream's base URL.
func (w *upstreamWay) request(
	ctx context.Context, method, path, query string, content *httpx.Sent,
) (*http.Request, error) {
	u := *w.base // never of a text: nothing that is asked for may change its host
	u.RawPath, u.RawQuery = u.EscapedPath()+path, query
	var err error
	if u.Path, err = url.PathUnescape(u.RawPath); err != nil {
		return nil, errors.New("not a URL") // the error quotes it
	}
	req, err := http.NewRequestWithContext(ctx, method, "", nil)
	if err != nil {
		return nil, errors.New("not a method")
	}
	req.URL, req.Host = &u, u.Host
	if content.Len() > 0 {
		content.Attach(req)
		req.Close = w.pool == nil
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept-Encoding", "identity") // what is compressed comes in lumps
	if w.key == nil {
		return req, nil
	}
	return req, httpx.SetBearer(req.Header, w.key)
}

func (w *upstreamWay) close() {
	if w.pool != nil {
		w.pool.Close()
	}
}
