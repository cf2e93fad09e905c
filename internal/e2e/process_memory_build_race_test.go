// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && race

package e2e_test

// underRace: the race detector's own memory is large, and its build leaves other pieces behind.
const underRace = true
