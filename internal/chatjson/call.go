// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"net/http"

	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// Call is what a chat completion request asks for besides its answer.
type Call struct {
	Stream       bool
	IncludeUsage bool
	Choices      int // 1 at least

	hasStream bool // there are members that are about streams, whatever they ask for
}

// IsStreamMember tells the members of a request that are about streams.
func IsStreamMember(m jsonspan.Member) bool { return m.Is("stream") || m.Is("stream_options") }

// HasStreamMember reports whether a request has such members.
func HasStreamMember(valid []byte) bool {
	for m := range jsonspan.MembersOf(valid) {
		if IsStreamMember(m) {
			return true
		}
	}
	return false
}

// LookAtCall checks a request that came from outside, and says what it asks for.
func LookAtCall(body []byte) (*Call, error) {
	if err := checkRequestObject(body); err != nil {
		return nil, err
	}
	var err error
	call := callOf(body, func(m jsonspan.Member) {
		if err == nil {
			err = checkMember(m)
		}
	})
	if err != nil {
		return nil, err
	}
	return call, nil
}

// CallOf is LookAtCall for a request that was checked before.
func CallOf(valid []byte) *Call { return callOf(valid, func(jsonspan.Member) {}) }

// callOf also gives each member to look.
func callOf(valid []byte, look func(jsonspan.Member)) *Call {
	call := &Call{Choices: 1}
	prompts := int64(1) // of the older endpoint, which may have several
	for m := range jsonspan.MembersOf(valid) {
		look(m)
		switch {
		case m.Is("stream"):
			call.Stream, call.hasStream = string(m.Value) == "true", true
		case m.Is("stream_options"):
			call.IncludeUsage, call.hasStream = IncludesUsage(m.Value), true
		case m.Is("n"):
			if n, err := WholeNumber(m.Value); err == nil && n > 1 && n <= MaxWeight {
				call.Choices = int(n)
			}
		case m.Is("prompt"):
			prompts = promptsIn(m.Value)
		}
	}
	call.Choices *= int(prompts)
	return call
}

// IncludesUsage tells whether the value of stream_options asks for the usage.
func IncludesUsage(valid []byte) bool { return string(Last(valid, "include_usage")) == "true" }

// CutStream appends body without what asks for a stream to dst, which may be body[:0].
func CutStream(dst, body []byte) []byte { return jsonspan.CutOf(dst, body, IsStreamMember) }

// CutStream is body without what asks for a stream. It works in place.
func (c *Call) CutStream(body []byte) []byte {
	if !c.hasStream {
		return body
	}
	return CutStream(body[:0], body)
}

// promptsIn counts the texts of a prompt: one, unless it is a list of texts, or of lists of tokens.
func promptsIn(prompt []byte) (n int64) {
	for p := range jsonspan.ElementsOf(prompt) {
		if kind := jsonspan.KindOf(p); kind == jsonspan.String || kind == jsonspan.Array {
			n++
		}
	}
	return max(n, 1)
}

// ErrorType is the type of OpenAI's error object for a status.
func ErrorType(status int) string {
	switch {
	case status == http.StatusUnauthorized:
		return "authentication_error"
	case status == http.StatusForbidden:
		return "permission_error"
	case status == http.StatusNotFound:
		return "not_found_error"
	case status == http.StatusTooManyRequests:
		return "rate_limit_error"
	case status < 500:
		return "invalid_request_error"
	}
	return "server_error"
}
