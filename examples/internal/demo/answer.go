// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"strings"

	"github.com/seed-017344ad/sealedchat"
)

// answerTo makes a text from the prompt, the conversation before it and the instructions.
func answerTo(messages []sealedchat.Message) string {
	var said []string
	system := ""
	for _, m := range messages {
		switch m.Role {
		case "user":
			said = append(said, m.Text())
		case "system", "developer":
			system = m.Text()
		}
	}
	if len(said) == 0 {
		return "You said nothing."
	}
	prompt, before := said[len(said)-1], said[:len(said)-1]
	var b strings.Builder
	b.WriteString(knowledge(prompt))
	fmt.Fprintf(&b, "You said: “%s”", prompt)
	switch n := len(before); n {
	case 0:
	case 1:
		fmt.Fprintf(&b, " You said one thing before: “%s”", before[0])
	default:
		fmt.Fprintf(&b, " You said %d things before, the last one: “%s”", n, before[n-1])
	}
	if system != "" {
		fmt.Fprintf(&b, " My instructions are: “%s”", system)
	}
	b.WriteString(" (I am a demo that only repeats.)")
	return b.String()
}

var capitals = [][2]string{
	{"Argentina", "Buenos Aires"}, {"Australia", "Canberra"}, {"Brazil", "Brasília"},
	{"Canada", "Ottawa"},
	{"Egypt", "Cairo"}, {"France", "Paris"}, {"Germany", "Berlin"}, {"India", "New Delhi"},
	{"Italy", "Rome"},
	{"Japan", "Tokyo"}, {"Kenya", "Nairobi"}, {"Norway", "Oslo"}, {"Poland", "Warsaw"},
	{"Spain", "Madrid"},
	{"Switzerland", "Bern"},
}

// knowledge returns the sentences of the demo model that fit the prompt, if there are any.
func knowledge(prompt string) string {
	lower := strings.ToLower(prompt)
	var b strings.Builder
	if strings.HasPrefix(lower, "hello") || strings.HasPrefix(lower, "hi ") || lower == "hi" {
		b.WriteString("Hello! ")
	}
	if strings.Contains(lower, "capital") {
		for _, c := range capitals {
			if strings.Contains(lower, strings.ToLower(c[0])) {
				fmt.Fprintf(&b, "The capital of %s is %s. ", c[0], c[1])
			}
		}
	}
	return b.String()
}
