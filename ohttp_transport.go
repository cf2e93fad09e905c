// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"cmp"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
)

// This file is what HTTPClient needs of the second protocol.

// sdkFields are the headers of an SDK's request that are sealed with it. Others are nobody's business: SDKs tell of the
// machine that they run on.
var sdkFields = [...]string{"Accept", "OpenAI-Beta", "Content-Type"}

// route takes requests of any method and path.
func (p *obliviousHTTP) route(req *http.Request) (*plainRequest, *unrouted) {
	if e := req.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, &unrouted{http.StatusUnsupportedMediaType, "unsupported_content_encoding",
			"sealedchat: what is sealed has no content encoding; nothing was sent"}
	}
	method := methodOf(req)
	return &plainRequest{method: method, path: p.innerPath(method, req.URL), header: fieldsOfSDK(req.Header)}, nil
}

// methodOf is a request's method, of which net/http takes none for GET.
func methodOf(req *http.Request) string { return cmp.Or(req.Method, http.MethodGet) }

// innerPath is where the gateway is to look. An SDK's base URL may repeat what Config.BaseURL has, and often lacks /v1.
// What is posted for a chat completion loses its query too, so that its checks need to know one path only.
func (p *obliviousHTTP) innerPath(method string, u *url.URL) string {
	path := u.EscapedPath()
	if rest, ok := strings.CutPrefix(path, p.base.EscapedPath()); ok && strings.HasPrefix(rest, "/") {
		path = rest
	}
	if strings.HasSuffix(strings.TrimRight(path, "/"), "/chat/completions") {
		if path = pathChat; method == http.MethodPost {
			return path
		}
	}
	if path == "" {
		path = "/"
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return path
}

func fieldsOfSDK(h http.Header) (fields []bhttp.Field) {
	for _, name := range sdkFields {
		if v := strings.Trim(h.Get(name), " \t"); v != "" {
			fields = append(fields, bhttp.Field{Name: strings.ToLower(name), Value: v})
		}
	}
	return fields
}

// passOn hands an answer to the SDK, which closes its body.
func passOn(req *http.Request, resp *openedResponse) *http.Response {
	h := resp.header.Clone()
	h.Del("Set-Cookie") // of whom, for what?
	h.Set(headerShouldRetry, "false")
	return &http.Response{
		Status: strconv.Itoa(resp.status) + " " + http.StatusText(resp.status), StatusCode: resp.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: resp.body, ContentLength: resp.length(), Request: req,
	}
}
