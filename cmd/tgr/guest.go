package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr/guest"
)

// newGuestCmd is the agent itself, so that process isolation needs no second binary. It is for our own use.
func newGuestCmd() *cobra.Command {
	return &cobra.Command{
		Use: "guest", Short: "Be the agent of a machine (for our own use)", Hidden: true, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := guest.Main(args, version(), os.Stderr); code != 0 {
				return exitError{code: code}
			}
			return nil
		},
	}
}
