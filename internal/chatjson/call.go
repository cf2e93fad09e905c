// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/jsonspan"
)

// Call is what a chat completion request asks for besides its answer.
type Call struct {
	Body         []byte // the request; it was checked
	Stream       bool
	IncludeUsage bool
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

// LookAtCall checks a request once, wherever it came from, and says what it asks for.
func LookAtCall(body []byte) (*Call, error) {
	if !ValidObject(body) {
		return nil, fmt.Errorf("%w: the request is not a JSON object in valid UTF-8", fault.ErrInvalidRequest)
	}
	call := &Call{Body: body}
	for m := range jsonspan.MembersOf(body) {
		switch {
		case m.Is("stream"):
			call.Stream = string(m.Value) == "true"
		case m.Is("stream_options"):
			options, _ := Pick(m.Value, "include_usage")
			call.IncludeUsage = string(options["include_usage"]) == "true"
		}
	}
	return call, CheckSpokenOutside(body)
}

// CutStream appends body without what asks for a stream to dst, which may be body[:0].
func CutStream(dst, body []byte) []byte { return jsonspan.CutOf(dst, body, IsStreamMember) }
