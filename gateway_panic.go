// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"runtime"
	"strconv"
)

// logPanic logs neither the panic's value nor arguments on the stack: they can hold content.
func (h *gatewayRequest) logPanic(p any) {
	h.g.cfg.Logger.Error("panic survived", "payload_id", h.payloadID, "type", fmt.Sprintf("%T", p), "at", callers())
	h.logAudit(h.tell(h.r.Context(), Event{Type: EventPanicSurvived, Reason: fmt.Sprintf("%T", p)}))
}

// callers names the functions that led to a panic, without their arguments.
func callers() []string {
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(5, pcs)])
	var names []string
	for {
		f, more := frames.Next()
		names = append(names, f.Function+":"+strconv.Itoa(f.Line))
		if !more {
			return names
		}
	}
}
