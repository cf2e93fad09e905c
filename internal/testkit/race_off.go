// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !race

package testkit

// RaceSlowdown is how many times longer a save takes here.
const RaceSlowdown = 1
