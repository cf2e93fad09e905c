// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package harden changes the whole process, when the program asks for it: it makes its memory
// harder to read for other processes, and overwrites what the heap has free.
package harden
