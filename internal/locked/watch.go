// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import "runtime"

// Watch destroys a buffer should its owner become unreachable before Stop. The zero Watch watches
// nothing.
type Watch struct {
	cleanup runtime.Cleanup
	on      bool
}

// WatchOwner begins to watch. The buffer must not lead back to its owner, or that would never
// become unreachable; and whoever uses the bytes keeps the owner reachable meanwhile.
func WatchOwner[T any](owner *T, b *Buffer) Watch {
	process.watched.Add(1)
	return Watch{runtime.AddCleanup(owner, func(b *Buffer) {
		process.watched.Add(-1)
		process.leaked.Add(1)
		b.Destroy()
	}, b), true}
}

// Stop ends the watch, before the owner destroys the buffer itself. It is idempotent.
func (w *Watch) Stop() {
	if w.on {
		w.cleanup.Stop()
		w.on = false
		process.watched.Add(-1)
	}
}
