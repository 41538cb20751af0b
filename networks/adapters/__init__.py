"""What adapter networks share: target layers, options, the network, its files; and the layers of each kind."""
