"""The figures of a search's page, drawn by plotly as SVG: nothing needs WebGL or the network."""
