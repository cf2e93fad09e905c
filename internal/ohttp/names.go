// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import "fmt"

// The names on which a client and a gateway of this module agree.
const (
	// Path is where a gateway lists its keys (GET) and accepts requests (POST).
	Path = "/.well-known/ohttp-gateway"

	// TypeProblem is the media type of a refusal (RFC 9457). Two refusals have a problem type of
	// their own (RFC 9458, section 7.1.3).
	TypeProblem = "application/problem+json"
	ProblemKey  = "https://iana.org/assignments/http-problem-types#ohttp-key"
	ProblemDate = "https://iana.org/assignments/http-problem-types#date"

	// HeaderProcessed is a header of a sealed refusal. Its value "no" says that the gateway passed
	// nothing of the request on.
	HeaderProcessed = "sealedchat-processed"
	// HeaderRefusedBy is a header of every sealed refusal. Its value "gateway" says that the words
	// are the gateway's own: nothing of the request, nothing of the upstream.
	HeaderRefusedBy = "sealedchat-refused-by"
	// HeaderTier is the security tier that a sealed request asks for and that its answer states.
	HeaderTier = "x-security-tier"
)

// Kind returns the name of a KEM for people to read, or its number in hex.
func Kind(kemID uint16) string {
	switch kemID {
	case XWing:
		return "X-Wing"
	case X25519:
		return "X25519"
	}
	return fmt.Sprintf("%#04x", kemID)
}
