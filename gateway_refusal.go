// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// refusal is an answer that is not a completion. detail is the gateway's own words: nothing of the
// request, nothing of the upstream.
type refusal struct {
	status     int
	detail     string
	retryAfter time.Duration
	cause      error  // for the log; its text is sanitised there
	kind       string // a problem type, in the second protocol
	allow      string // methods, with 405 in the second protocol
	forgotten  bool   // a copy of the request may be served later on, in the second protocol
	event      EventType
}

// as makes the refusal an audit event.
func (p *refusal) as(t EventType) *refusal {
	p.event = t
	return p
}

func refuse(status int, detail string) *refusal { return &refusal{status: status, detail: detail} }

func tooManyAtOnce() *refusal {
	p := refuse(http.StatusServiceUnavailable, "too many requests at the same time")
	p.retryAfter = time.Second
	return p
}

// render sets the header of a refusal and returns its body.
func (p *refusal) render(header http.Header) []byte {
	body, _ := json.Marshal(map[string]string{"detail": p.detail}) // a map of strings marshals
	header.Set("Content-Type", "application/json")
	if p.status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", "Bearer")
	}
	if p.retryAfter > 0 {
		header.Set("Retry-After", httpx.WholeSeconds(p.retryAfter))
	}
	return body
}

// problem is the refusal as a problem document (RFC 9457), with OpenAI's error object for SDKs.
func (p *refusal) problem() []byte {
	kind := p.kind
	if kind == "" {
		kind = "about:blank"
	}
	body, _ := json.Marshal(struct { // of strings, an int and nils: it marshals
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Error  any    `json:"error"`
	}{kind, http.StatusText(p.status), p.status, p.detail, map[string]any{
		"message": p.detail, "type": sdkErrorType(p.status), "param": nil, "code": nil,
	}})
	return body
}
