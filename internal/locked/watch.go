// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import "runtime"

// Watch destroys a buffer if its owner becomes unreachable before Stop. The zero Watch watches
// nothing. It is not safe for concurrent use.
type Watch struct {
	cleanup runtime.Cleanup
	on      bool
}

// WatchOwner begins to watch. The buffer must not refer to its owner, because the owner would never
// become unreachable then. Code that uses the bytes keeps the owner reachable meanwhile.
func WatchOwner[T any](owner *T, b *Buffer) Watch {
	process.watched.Add(1)
	return Watch{runtime.AddCleanup(owner, func(b *Buffer) {
		process.watched.Add(-1)
		process.leaked.Add(1)
		b.Destroy()
	}, b), true}
}

// Stop ends the watch. The owner calls it before it destroys the buffer itself. It is idempotent.
func (w *Watch) Stop() {
	if w.on {
		w.cleanup.Stop()
		w.on = false
		process.watched.Add(-1)
	}
}
