"""The league: this detector and its competitors, fitted and measured alike on the same images."""
