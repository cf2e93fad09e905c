// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux && !race

package e2e_test

// underRace: not built with -race.
const underRace = false
