package main

import (
	"github.com/spf13/cobra"
)

// newGuestCmd is the agent itself, so that process isolation needs no second binary. It is for our own use.
func newGuestCmd() *cobra.Command {
	return &cobra.Command{
		Use: "guest", Short: "Be the agent of a machine (for our own use)", Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error { return runGuest(cmd.Context(), args) },
	}
}
