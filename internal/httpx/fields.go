// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// UserAgent is the User-Agent of both ends.
const UserAgent = "sealedchat"

// MaxRetryAfter bounds what a Retry-After header can say, so that no arithmetic on it overflows.
const MaxRetryAfter = 365 * 24 * time.Hour

// RetryAfter reads a Retry-After header (RFC 9110, section 10.2.3): seconds, or a date. 0 means
// none.
func RetryAfter(v string, now time.Time) time.Duration {
	v = strings.TrimSpace(v)
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseUint(v, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(n, uint64(MaxRetryAfter/time.Second))) * time.Second
	}
	t, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), MaxRetryAfter)
}

// WholeSeconds rounds up: for a Retry-After header.
func WholeSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// HeaderOf is a field section as net/http has it.
func HeaderOf(fields []bhttp.Field) http.Header {
	h := make(http.Header, len(fields))
	for _, f := range fields {
		h.Add(f.Name, f.Value)
	}
	return h
}

// HasType tells whether a body is of a media type, whatever its parameters.
func HasType(h http.Header, want string) bool {
	got, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && got == want
}

// Secret is what this package needs of an API key in locked memory.
type Secret interface {
	Use(func([]byte) error) error
	Len() int
}

// SetBearer puts an API key into a header, which takes a string: copies of it stay on the heap
// until they are reused.
func SetBearer(h http.Header, key Secret) error {
	return key.Use(func(b []byte) error {
		if err := ValidAPIKey(b); err != nil {
			return err
		}
		h.Set("Authorization", "Bearer "+string(b))
		return nil
	})
}

// apiKeyHint names the usual mistakes.
func apiKeyHint(b []byte) string {
	bearer := []byte("bearer")
	switch {
	case len(b) == 0:
		return "the API key is empty; for none leave it nil"
	case b[len(b)-1] == '\n', b[len(b)-1] == '\r':
		return "the API key ends in a line break: trim it, as ReadSecret does for a file"
	case b[0] == ' ', b[0] == '\t', b[len(b)-1] == ' ', b[len(b)-1] == '\t':
		return "there is white space around the API key: trim it"
	case len(b) > len(bearer) && bytes.EqualFold(b[:len(bearer)], bearer) &&
		(b[len(bearer)] == ' ' || b[len(bearer)] == '\t'):
		return "the API key begins with \"Bearer \": give the key alone"
	case bytes.HasPrefix(b, []byte("\xef\xbb\xbf")):
		return "the API key begins with a byte order mark: save its file without one"
	}
	return ""
}

// ValidAPIKey refuses what could end a header line, or could not stand in one.
func ValidAPIKey(b []byte) error {
	if hint := apiKeyHint(b); hint != "" {
		return fmt.Errorf("%w: %s", fault.ErrInvalidRequest, hint)
	}
	if len(b) > 4096 {
		return fmt.Errorf("%w: the API key has %d bytes, want 1 to 4096", fault.ErrInvalidRequest, len(b))
	}
	for _, c := range b {
		if c <= ' ' || c >= 0x7f {
			return fmt.Errorf("%w: the API key holds a control character, white space or non-ASCII",
				fault.ErrInvalidRequest)
		}
	}
	return nil
}
