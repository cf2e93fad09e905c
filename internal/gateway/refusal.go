// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// refusal is an answer that is not the upstream's. detail is the gateway's own words: nothing of
// the request, nothing of the upstream. There are a few dozen: programs may count by it.
type refusal struct {
	status     int
	detail     string
	retryAfter time.Duration
	cause      error  // for the log; its text is sanitised there
	kind       string // a problem type, in Oblivious HTTP
	allow      string // methods, with 405 in Oblivious HTTP
	unclaimed  bool   // a copy of the request may be served later on, in Oblivious HTTP
	event      string // the type of the audit event that it is
}

// statusClientGone is for the log alone.
const statusClientGone = 499

func refuse(status int, detail string) *refusal { return &refusal{status: status, detail: detail} }

// as makes the refusal an audit event.
func (p *refusal) as(event string) *refusal {
	p.event = event
	return p
}

// unavailable is a refusal for want of something that the gateway needs.
func unavailable(detail string, cause error) *refusal {
	return &refusal{status: http.StatusServiceUnavailable, detail: detail, cause: cause}
}

// soon asks the client to come again in a second.
func (p *refusal) soon() *refusal {
	p.retryAfter = time.Second
	return p
}

func upstreamFailed(cause error) *refusal {
	return &refusal{status: http.StatusBadGateway, detail: "the upstream failed", cause: cause}
}

func tooManyAtOnce() *refusal {
	return refuse(http.StatusServiceUnavailable, "too many requests at the same time").soon()
}

func accountBusy() *refusal {
	return refuse(http.StatusTooManyRequests,
		"too many requests of this account at the same time").soon()
}

func tooLarge() *refusal {
	return refuse(http.StatusRequestEntityTooLarge, "the request is too large")
}

func notWhole(cause error) *refusal {
	p := refuse(http.StatusBadRequest, "the request did not arrive whole")
	p.cause = cause
	return p
}

func notInTime() *refusal {
	return refuse(http.StatusRequestTimeout, "the request did not arrive in time")
}

func closing() *refusal { return refuse(http.StatusServiceUnavailable, "the gateway is closing") }

func sentBefore() *refusal {
	return refuse(http.StatusConflict, "this request was sent before").as(ReplayRefused)
}

// authRefusal gives an error of Authenticate its status.
func authRefusal(err error, retryAfter time.Duration) *refusal {
	var p *refusal
	switch {
	case errors.Is(err, fault.ErrPermission):
		return refuse(http.StatusForbidden, "permission denied")
	case errors.Is(err, fault.ErrRateLimited):
		p = refuse(http.StatusTooManyRequests, "rate limited")
	case errors.Is(err, fault.ErrUnavailable):
		p = refuse(http.StatusServiceUnavailable, "service unavailable")
	default:
		return refuse(http.StatusUnauthorized, "invalid API key")
	}
	p.retryAfter = retryAfter
	return p
}

// render sets the header of a refusal in the clear, and returns its body.
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

// sdkPaths are the ends of paths that SDKs ask for. Never changed.
var sdkPaths = append([]string{"/models"}, readPaths...)

// noEndpoint answers what is served nowhere. An SDK that was given the gateway's URL gets OpenAI's
// error object, which says what is wrong.
func (h *request) noEndpoint() {
	p := refuse(http.StatusNotFound, "no such endpoint")
	if !slices.ContainsFunc(sdkPaths, func(end string) bool {
		return strings.HasSuffix(h.r.URL.Path, end)
	}) {
		h.refuse(p)
		return
	}
	h.problem = p
	body, _ := json.Marshal(map[string]any{"error": map[string]any{ // it marshals
		"message": "this gateway takes sealed requests alone: send them with sealedchat's " +
			"client, " +
			"or give an SDK its HTTPClient()",
		"type": chatjson.ErrorType(p.status), "param": nil, "code": "sealed_requests_only",
	}})
	h.header("Content-Type", "application/json")
	_ = h.write(p.status, body) // the client may be gone
}

// document is the refusal as a problem document (RFC 9457), with OpenAI's error object for SDKs.
func (p *refusal) document() []byte {
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
	}{
		kind, http.StatusText(p.status), p.status, p.detail,
		map[string]any{
			"message": p.detail, "type": chatjson.ErrorType(p.status), "param": nil, "code": nil,
		},
	})
	return body
}

func internalError(cause error) *refusal {
	return &refusal{status: http.StatusInternalServerError, detail: "internal error", cause: cause}
}
