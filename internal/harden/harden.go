// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package harden changes the whole process, at the request of the program: it makes the memory of
// the process harder to read for other processes, and overwrites free memory of the heap.
package harden
