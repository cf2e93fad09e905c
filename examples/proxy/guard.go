// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"crypto/subtle"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// guard says who may use the proxy. It never changes.
type guard struct {
	hosts   []string // that may stand in the header Host, lower case, without a port
	token   *[sha256.Size]byte
	browser http.CrossOriginProtection
}

// refusal is an answer of the proxy's own.
type refusal struct {
	status        int
	code, message string
}

// check judges a request before anything of its body is read. The order matters: a page of another
// origin learns nothing about tokens, and one that had the name of this address changed to ours
// (DNS rebinding) learns nothing at all.
func (g *guard) check(r *http.Request) *refusal {
	switch {
	case !g.knows(r.Host):
		return &refusal{http.StatusForbidden, "host_not_allowed",
			"the header Host does not name this proxy; if clients call it by that name, start it " +
				"with -host NAME"}
	case r.Method == http.MethodOptions:
		return &refusal{http.StatusForbidden, "cross_origin",
			"web pages may not use this proxy, so it answers no preflight"}
	case fromElsewhere(r) || g.browser.Check(r) != nil:
		return &refusal{http.StatusForbidden, "cross_origin",
			"this request comes from a web page of another origin, which may not use this proxy"}
	case !g.hasToken(r):
		return &refusal{http.StatusUnauthorized, "invalid_token",
			"this proxy wants its token: give it to the SDK as the API key"}
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return &refusal{http.StatusMethodNotAllowed, "method_not_allowed",
			"this method is not carried"}
	case hasBody(r) && !isJSON(r.Header):
		return &refusal{http.StatusUnsupportedMediaType, "unsupported_media_type",
			"the body has to be JSON, with Content-Type: application/json"}
	}
	return nil
}

// knows reports whether a Host is on the list, whatever its port: that one may be forwarded. What a
// browser would not send is not on the list: "localhost:evil.example" is no name with a port.
func (g *guard) knows(host string) bool {
	u, err := url.Parse("http://" + host)
	if err != nil || u.Host != host {
		return false
	}
	if strings.HasPrefix(host, "[") != strings.Contains(u.Hostname(), ":") { // for IPv6 alone
		return false
	}
	return slices.Contains(g.hosts, strings.ToLower(u.Hostname()))
}

// fromElsewhere reports whether a browser says that another origin's page sends the request. That
// includes pages of other ports of this machine (same-site). Programs that are no browsers send
// neither header.
func fromElsewhere(r *http.Request) bool {
	for _, site := range r.Header.Values("Sec-Fetch-Site") {
		if site != "same-origin" && site != "none" {
			return true
		}
	}
	for _, origin := range r.Header.Values("Origin") {
		if !strings.EqualFold(origin, "http://"+r.Host) { // "null" too
			return true
		}
	}
	return false
}

// hasToken compares the token, if there is one, in a time that does not depend on it.
func (g *guard) hasToken(r *http.Request) bool {
	if g.token == nil {
		return true
	}
	sum := sha256.Sum256([]byte(bearer(r.Header)))
	return subtle.ConstantTimeCompare(sum[:], g.token[:]) == 1
}

// bearer is the token in the header Authorization, or "".
func bearer(h http.Header) string {
	values := h.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// hasBody reports whether a request has a body, or a method that is meant to have one.
func hasBody(r *http.Request) bool {
	switch r.Method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		return true
	}
	return r.ContentLength != 0
}

// isJSON reports whether the content is called JSON. A form of a web page cannot call it that.
func isJSON(h http.Header) bool {
	values := h.Values("Content-Type")
	if len(values) != 1 {
		return false
	}
	kind, _, err := mime.ParseMediaType(values[0])
	return err == nil && kind == "application/json"
}
