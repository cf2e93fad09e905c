// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"io"
	"net/http"
	"sync"
)

// InMemory returns a RoundTripper that calls a handler instead of using a network.
func InMemory(handler http.Handler) http.RoundTripper { return inMemory{handler} }

type inMemory struct{ handler http.Handler }

func (m inMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	} else {
		req = req.Clone(req.Context())
		req.Body = http.NoBody
	}
	reader, writer := io.Pipe()
	answer := &memoryAnswer{header: http.Header{}, status: http.StatusOK, body: writer,
		begun: make(chan struct{})}
	stop := context.AfterFunc(req.Context(), func() {
		_ = reader.CloseWithError(context.Cause(req.Context()))
	})
	go func() { // ends with the handler: at the end of the request, or when nobody reads any more
		defer stop()
		m.handler.ServeHTTP(answer, req)
		answer.begin()
		_ = writer.Close()
	}()
	<-answer.begun
	return &http.Response{
		StatusCode: answer.status, Status: http.StatusText(answer.status), Proto: "HTTP/1.1",
		ProtoMajor: 1, ProtoMinor: 1,
		Header: answer.header, Body: reader, ContentLength: -1, Request: req,
	}, nil
}

// memoryAnswer is the http.ResponseWriter of inMemory. A Write waits for a reader, so everything is
// flushed at once.
type memoryAnswer struct {
	header http.Header
	status int
	body   *io.PipeWriter
	begun  chan struct{} // closed once header and status are set
	once   sync.Once
}

func (a *memoryAnswer) begin()              { a.once.Do(func() { close(a.begun) }) }
func (a *memoryAnswer) Header() http.Header { return a.header }
func (a *memoryAnswer) Flush()              { a.begin() }

func (a *memoryAnswer) WriteHeader(status int) {
	a.status = status
	a.begin()
}

func (a *memoryAnswer) Write(b []byte) (int, error) {
	a.begin()
	return a.body.Write(b)
}
